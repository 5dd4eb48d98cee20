"""What comes in: read, told apart by its hash, put to the side it belongs on."""
