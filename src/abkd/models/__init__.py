"""Reading rows from models of transformers, timm, torchvision and plain PyTorch: hidden states, head, logits."""
