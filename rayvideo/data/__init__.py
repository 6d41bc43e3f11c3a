"""Manifests to clips to latents."""
