# The images by the names of their tags: docker buildx bake -f scripts/docker/docker-bake.hcl 5090_40M
variable "IMAGE" { default = "atlas_jax" }

group "default" { targets = ["cpu", "5090_40M", "hopper", "latest", "tpu"] }

target "one" {
  context    = "."
  dockerfile = "scripts/docker/Dockerfile"
}

target "cpu" {
  inherits = ["one"]
  target   = "cpu"
  tags     = ["${IMAGE}:cpu"]
}

target "5090_40M" {
  inherits = ["one"]
  target   = "rtx5090_40m"
  tags     = ["${IMAGE}:5090_40M"]
}

target "hopper" {
  inherits = ["one"]
  target   = "hopper"
  tags     = ["${IMAGE}:hopper"]
}

target "latest" {
  inherits = ["one"]
  target   = "latest"
  tags     = ["${IMAGE}:latest"]
}

target "tpu" {
  inherits = ["one"]
  target   = "tpu"
  tags     = ["${IMAGE}:tpu"]
}
