"""What a language model says about images and which images it draws: codes in, text out, and back."""
