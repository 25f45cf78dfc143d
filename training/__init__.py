"""Trains Storyteller's illustrator: a small latent diffusion model for 128-px picture-book scenes."""
