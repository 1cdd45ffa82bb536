package prometheus

import (
	"math"
	"strconv"
	"strings"
)

// ContentType is the media type of a Page, as Kong writes it.
const ContentType = "text/plain; charset=UTF-8"

// The kinds of families.
const (
	Counter   = "counter"
	Gauge     = "gauge"
	Histogram = "histogram"
)

// Page is a text in the Prometheus format, version 0.0.4, that grows family by family. It counts nothing: whoever has figures writes
// them when it is asked. The zero Page is empty.
type Page struct {
	b    []byte
	name string // of the family
}

// Family begins a family; all its samples follow before the next one begins.
func (p *Page) Family(name, kind, help string) {
	p.name = name
	p.b = append(p.b, "# HELP "...)
	p.b = append(p.b, name...)
	p.b = append(p.b, ' ')
	p.escaped(help, false)
	p.b = append(p.b, "\n# TYPE "...)
	p.b = append(p.b, name...)
	p.b = append(p.b, ' ')
	p.b = append(p.b, kind...)
	p.b = append(p.b, '\n')
}

// Add writes a sample of the family; labels alternate name and value. Values may be any text.
func (p *Page) Add(v float64, labels ...string) { p.sample("", v, labels, "") }

// One is a family with one sample that has no labels.
func (p *Page) One(name, kind, help string, v float64) {
	p.Family(name, kind, help)
	p.Add(v)
}

// Buckets writes a histogram of the family. counts are those of each bound and, last, of what is above all bounds; they are not
// cumulative.
func (p *Page) Buckets(bounds []float64, counts []uint64, sum float64, labels ...string) {
	var n uint64
	for i, c := range counts {
		n += c
		le := "+Inf"
		if i < len(bounds) {
			le = strconv.FormatFloat(bounds[i], 'f', -1, 64)
		}
		p.sample("_bucket", float64(n), labels, le)
	}
	p.sample("_count", float64(n), labels, "")
	p.sample("_sum", sum, labels, "")
}

// Bytes is the text so far.
func (p *Page) Bytes() []byte { return p.b }

func (p *Page) sample(suffix string, v float64, labels []string, le string) {
	p.b = append(p.b, p.name...)
	p.b = append(p.b, suffix...)
	sep := byte('{')
	for i := 0; i+1 < len(labels); i += 2 {
		p.label(sep, labels[i], labels[i+1])
		sep = ','
	}
	if le != "" {
		p.label(sep, "le", le)
		sep = ','
	}
	if sep == ',' {
		p.b = append(p.b, '}')
	}
	p.b = append(p.b, ' ')
	if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
		p.b = strconv.AppendInt(p.b, int64(v), 10)
	} else {
		p.b = strconv.AppendFloat(p.b, v, 'g', -1, 64)
	}
	p.b = append(p.b, '\n')
}

func (p *Page) label(sep byte, name, value string) {
	p.b = append(p.b, sep)
	p.b = append(p.b, name...)
	p.b = append(p.b, '=', '"')
	p.escaped(value, true)
	p.b = append(p.b, '"')
}

// escaped writes text so that it stays what it is: a name in the configuration must not end a line and forge the next one.
func (p *Page) escaped(s string, quotes bool) {
	s = strings.ToValidUTF8(s, "\uFFFD")
	done := 0
	for i := range len(s) {
		c := s[i]
		if c != '\n' && c != '\\' && (c != '"' || !quotes) {
			continue
		}
		p.b = append(p.b, s[done:i]...)
		if done = i + 1; c == '\n' {
			c = 'n'
		}
		p.b = append(p.b, '\\', c)
	}
	p.b = append(p.b, s[done:]...)
}
