"""What the written tasks share: prompts, answers and how they are sampled, scored and judged, needles to find.

May import what tasks may, but no task.
"""
