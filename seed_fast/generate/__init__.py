"""Language models that caption images and draw them: codes to text, text to codes, and codes to pictures."""
