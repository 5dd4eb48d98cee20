"""Routes for models that write, in the form that OpenAI's clients expect."""
