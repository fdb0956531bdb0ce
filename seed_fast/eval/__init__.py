"""What a trained model is worth, measured as the paper measures it."""
