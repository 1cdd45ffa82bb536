package dataplane

// pageSize balances what one change copies (a page) against the directory, which is copied too.
const pageSize = 128

// vector is a persistent array: versions share pages. Where nothing but zeros was ever set there is no page.
type vector[T comparable] struct{ pages []*[pageSize]T }

func (v vector[T]) at(i uint32) (x T) {
	if p := i / pageSize; p < uint32(len(v.pages)) && v.pages[p] != nil {
		x = v.pages[p][i%pageSize]
	}
	return x
}

// vectorEdit makes the next version of a vector and hands out its free slots.
type vectorEdit[T comparable] struct {
	v     vector[T]
	fresh map[uint32]bool // pages made since the last publish; nil: the directory is shared
	free  []uint32
	used  uint32
}

func (e *vectorEdit[T]) alloc() uint32 {
	if n := len(e.free); n > 0 {
		i := e.free[n-1]
		e.free = e.free[:n-1]
		return i
	}
	e.used++
	return e.used - 1
}

func (e *vectorEdit[T]) release(i uint32) {
	var zero T
	e.set(i, zero)
	e.free = append(e.free, i)
}

func (e *vectorEdit[T]) set(i uint32, x T) {
	if x == e.v.at(i) {
		return
	}
	if e.fresh == nil {
		e.v.pages = append([]*[pageSize]T(nil), e.v.pages...)
		e.fresh = map[uint32]bool{}
	}
	p := i / pageSize
	for uint32(len(e.v.pages)) <= p {
		e.v.pages = append(e.v.pages, nil)
	}
	if !e.fresh[p] {
		c := new([pageSize]T)
		if old := e.v.pages[p]; old != nil {
			*c = *old
		}
		e.v.pages[p] = c
		e.fresh[p] = true
	}
	e.v.pages[p][i%pageSize] = x
}

// publish returns the current version; later changes do not touch it.
func (e *vectorEdit[T]) publish() vector[T] {
	e.fresh = nil
	return e.v
}
