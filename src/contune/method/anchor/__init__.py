"""Methods that hold on to weights or outputs."""
