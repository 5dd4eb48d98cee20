"""What an answer is: a class, several labels, a tag for each word, a number, a text."""
