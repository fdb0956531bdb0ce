"""Language models that see and draw: images as words of their vocabulary."""
