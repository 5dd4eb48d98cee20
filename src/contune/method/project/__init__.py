"""Methods that project gradients or steps."""
