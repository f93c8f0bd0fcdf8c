"""The data of a run: captioned images, and the clean latents or trajectories that are made of them."""
