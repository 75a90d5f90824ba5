"""`signfuse serve`: a web page on which anybody translates a clip, and the server of it.

``page`` is what a visitor sees, ``door`` what reaches it over HTTP, ``reading`` the process that
decodes what strangers send and that can be ended, and ``clips`` what is done with a clip.
"""
