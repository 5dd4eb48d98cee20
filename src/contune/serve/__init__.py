"""A living model answering over HTTP: one thread owns the model, requests are batched, versions swap between two batches."""
