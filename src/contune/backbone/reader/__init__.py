"""How examples become a model's inputs."""
