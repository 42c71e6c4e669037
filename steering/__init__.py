"""AutoSteer: Safety Awareness Score, prober, Refusal Head, guard bundles. Knows tensors and backbones, no HTTP."""
