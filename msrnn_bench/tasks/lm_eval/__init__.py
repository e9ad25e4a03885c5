"""Any task of lm-eval as a task of ours: harness.py asks, model.py and scoring.py answer, metrics.py makes rows.

May import what tasks may, and writing/, which reads and writes for it.
"""
