"""A float32 graph in fp16 or bf16, and the nodes that stay float32."""
