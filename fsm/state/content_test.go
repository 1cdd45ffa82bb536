package state

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// wide has a field of every form that is set without encoding/json, and of some that are not.
type wide struct {
	ID     string              `json:"id"`
	Text   string              `json:"text"`
	Number float64             `json:"number"`
	Int    int                 `json:"int"`
	IntPtr *int                `json:"int_ptr"`
	Bool   bool                `json:"bool"`
	Maybe  *bool               `json:"maybe"`
	List   []string            `json:"list"`
	Map    map[string][]string `json:"map"`
	Raw    json.RawMessage     `json:"raw"`
	Any    any                 `json:"any"`
	Small  int8                `json:"small"`
	Quoted int                 `json:"quoted,string"`
	Ref    refOf               `json:"ref"`
	RefPtr *refOf              `json:"ref_ptr"`
}
