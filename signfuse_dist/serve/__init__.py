"""A small web page to try a trained model: drop or record a clip and see its translation."""
