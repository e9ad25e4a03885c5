"""The measurements, one file each: a job in, rows out. writing/ is what the written tasks share, lm_eval/ is lm-eval in ours.

May import job, datasets, models, multistate, policies and results. Opens no result file and computes no mean.
"""
