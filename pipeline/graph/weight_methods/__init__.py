"""How weights are rounded to few bits; a method is a file here and a line in `catalogue`."""
