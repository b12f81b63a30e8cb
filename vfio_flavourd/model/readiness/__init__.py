"""Whether a host is ready: facts that were read of it, and what follows from them."""
