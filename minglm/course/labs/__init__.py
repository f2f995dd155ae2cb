"""The laboratories: experiments on the toy that are repeated over sizes, texts and settings, and recorded."""
