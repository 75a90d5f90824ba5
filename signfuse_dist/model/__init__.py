"""The model of the paper; imports nothing of data, engine or evaluation."""
