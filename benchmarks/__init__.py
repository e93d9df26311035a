"""Measure this package against what people use today, and against the machine's limits.

    python -m benchmarks [--figures a,b] [--sizes 112,1062] [--repeats 5] [--out DIR] [--quick]

Every figure is measured in fresh processes of its own, one after another; within a figure
the variants alternate and their order rotates, so that a slow minute of the machine falls
on all of them. Nothing is asserted: a bar that is missed is reported as missed.

    process    one figure's measuring function in a fresh process
    models     the model, its data, and one timed `fit`
    stopwatch  time hooks and steps from outside, alike for everybody
    peers      the callbacks that are compared
    limits     memory copy, file write, file read: what the machine allows
    hooks, cost, sparse, loads, memory, outage, resolve, resuming, thousand   the figures
    results    samples, bars, figures; report and plots show them
"""

import os

# TensorFlow greets on standard error, in the parent process too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
