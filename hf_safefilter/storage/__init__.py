"""What is kept on disk: artefacts known by their digest, and fitted things opened by it."""
