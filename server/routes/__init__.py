"""One module per API family; each gives its routes, bound to one application's `Edge`."""
