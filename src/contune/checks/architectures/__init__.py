"""The same methods on tiny random models of many architectures that write."""
