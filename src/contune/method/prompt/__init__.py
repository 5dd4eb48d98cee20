"""Methods of prompts and prefixes."""
