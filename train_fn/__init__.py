"""Everything that runs on a worker, in three floors.

Ground (pure): config, rows, chat, token store, example order, step planner, batches, schedule, loss.
Middle (torch.distributed): optimizer step, evaluation, checkpoints, the loop.
Door: `worker`, the worker function, the only module here that imports `ray.train`.
"""
