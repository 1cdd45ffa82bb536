// Package admin is the room of the Admin API; it holds no code itself. Its packages are service (the only door to entities), rest
// (Kong's wire format), rpc (gRPC and Connect), declarative (kong.yml) and auth (who may speak). DESIGN.md tells how they work together.
package admin
