"""What a run is trained on: captioned images, and the clean latents or trajectories that become of them."""
