"""The same application on each framework, and the matrix of frameworks and servers."""
