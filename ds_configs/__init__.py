"""DeepSpeed files, installed as data so that a recipe can name one (``zero2``) from anywhere."""
