"""Which module of a modular adapter answers an example."""
