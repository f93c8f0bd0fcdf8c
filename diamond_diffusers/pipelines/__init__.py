"""A stock diffusers pipeline whose samples obey a reward."""
