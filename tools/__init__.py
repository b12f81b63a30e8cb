"""What is made from the code and committed, by `make reference`: it is not part of the package."""
