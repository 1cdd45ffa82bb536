package main

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"concord/proxy/balancer"
)

// TestMemory: what was written is read; another version, a damage or an end in the middle is an error that says so.
func TestMemory(t *testing.T) {
	want := memory{Limits: []byte{1, 2, 3}, Targets: []balancer.Known{{Upstream: "u", Host: "h", Addr: netip.MustParseAddrPort("[::1]:80"), Down: true, Left: 7}}}
	f, err := want.file()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	whole, err := io.ReadAll(io.NewSectionReader(f, 0, maxMemory))
	if err != nil {
		t.Fatal(err)
	}
	got, err := readMemory(bytes.NewReader(whole))
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); err != nil || diff != "" {
		t.Error(err, diff)
	}
	header := len(fmt.Sprintf(memoryHeader, 0, 0))
	changed := func(at int, to string) []byte {
		return append(append(bytes.Clone(whole[:at]), to...), whole[at+len(to):]...)
	}
	for name, tt := range map[string]struct {
		b    []byte
		says string
	}{
		"nothing":         {nil, "header"},
		"something else":  {bytes.Repeat([]byte("x"), 200), "header"},
		"another version": {changed(0, fmt.Sprintf(memoryHeader, memoryVersion+1, 1)), "version 2"},
		"too long":        {changed(0, fmt.Sprintf(memoryHeader, memoryVersion, maxMemory+1)), "at most"},
		"negative":        {changed(0, fmt.Sprintf(memoryHeader, memoryVersion, -1)), "at most"},
		"damaged":         {changed(len(whole)-3, "x"), "damaged"},
		"breaks off":      {whole[:len(whole)-1], "breaks off"},
		"only a header":   {whole[:header+5], "checksum"},
	} {
		if _, err := readMemory(bytes.NewReader(tt.b)); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want something with %q", name, err, tt.says)
		}
	}
}

func FuzzMemory(f *testing.F) {
	file, err := (&memory{Limits: []byte{1}, Targets: []balancer.Known{{Upstream: "u"}}}).file()
	if err != nil {
		f.Fatal(err)
	}
	defer file.Close()
	whole, err := io.ReadAll(io.NewSectionReader(file, 0, maxMemory))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(fmt.Appendf(nil, memoryHeader, memoryVersion, 1<<20))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMemory(bytes.NewReader(b))
		if err == nil {
			s := balancer.New(balancer.Options{})
			defer s.Close()
			s.Import(m.Targets)
		}
	})
}
