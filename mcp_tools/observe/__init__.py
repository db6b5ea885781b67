"""What is told of each finished call. An observer cannot change the answer."""
