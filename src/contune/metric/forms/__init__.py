"""What texts are compared by: their words, numbers and signs, and the stems of English words."""
