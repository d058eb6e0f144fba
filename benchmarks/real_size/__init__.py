"""Latency at real size: our W8A8 engine, the fp16 engine and ModelOpt's engine of one model."""
