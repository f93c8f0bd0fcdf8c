from diamond_diffusers.evaluation.counting import GraphMemory, counted

__all__ = ["GraphMemory", "counted"]
