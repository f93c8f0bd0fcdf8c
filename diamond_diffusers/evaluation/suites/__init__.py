"""Published benchmarks of text-to-image models: their prompts, and the rules that judge images; one file each."""
