package exchange

import "sync"

// gone is what is to happen when the client gives up.
type gone struct {
	mu   sync.Mutex
	left bool
	do   func()
}

// OnGone makes f run when the client gives up on the exchange; at once if it has. f must be quick and may not wait. nil
// takes it back: when OnGone has returned, the former f does not run any more.
func (x *Exchange) OnGone(f func()) {
	x.gone.mu.Lock()
	defer x.gone.mu.Unlock()
	x.gone.do = f
	if x.gone.left && f != nil {
		f()
	}
}

// Gone is called by a front end that notices, while the exchange runs, that nobody waits for the response any more.
func (x *Exchange) Gone() {
	x.gone.mu.Lock()
	defer x.gone.mu.Unlock()
	x.gone.left = true
	if x.gone.do != nil {
		x.gone.do()
	}
}
