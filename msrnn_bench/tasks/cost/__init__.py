"""What `efficiency` measures with: budgets of memory, the largest batch within one, runs against the clock.

May import job, datasets, models, multistate, policies, results and tasks.writing.
"""
