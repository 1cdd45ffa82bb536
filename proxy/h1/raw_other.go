//go:build !unix

package h1

// rawIO: elsewhere connections are used through net.Conn only.
const rawIO = false

func rawRead(int, []byte) (int, bool, error) { panic("h1: no raw sockets on this platform") }
func rawWrite(int, []byte) (int, error)      { panic("h1: no raw sockets on this platform") }
