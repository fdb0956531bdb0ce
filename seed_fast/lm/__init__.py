"""Language models that read and write images, whose codes are tokens of their vocabulary."""
