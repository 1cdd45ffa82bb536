package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"concord/admin/declarative"
	"concord/fsm/schema"
)

// load reads the files, and those below directories, into one document.
func (f *configFlags) load(cmd *cobra.Command, args []string) (schema.Record, error) {
	names := append(slices.Clone(f.states), args...)
	if len(names) == 0 {
		names = []string{"kong.yaml"}
	}
	var paths []string
	for _, name := range names {
		info, err := os.Stat(name)
		switch {
		case name == "-" || err == nil && !info.IsDir():
			paths = append(paths, name)
			continue
		case err != nil:
			return nil, usageError{err}
		}
		root := name + string(filepath.Separator) // also what a link leads to
		err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			switch ext := strings.ToLower(filepath.Ext(path)); {
			case err != nil:
				return err
			case e.IsDir() && path != root && strings.HasPrefix(e.Name(), "."): // .git, and the copies behind a ConfigMap's links
				return fs.SkipDir
			case !e.IsDir() && (ext == ".yaml" || ext == ".yml" || ext == ".json"):
				paths = append(paths, path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	var doc schema.Record
	for _, path := range paths {
		var text []byte
		var err error
		if path == "-" {
			text, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), declarative.MaxBytes+1))
		} else {
			text, err = os.ReadFile(path)
		}
		if err != nil {
			return nil, err
		}
		if text, err = f.expand(text); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		one, err := declarative.Read(text)
		if err == nil {
			doc, err = join(doc, one)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if doc == nil {
		return nil, usageError{fmt.Errorf("%s holds no .yaml, .yml or .json file", strings.Join(names, ", "))}
	}
	return doc, nil
}

// join adds the lists and records of one document to those of another.
func join(doc, one schema.Record) (schema.Record, error) {
	if doc == nil {
		return one, nil
	}
	for k, v := range one {
		have, isList := doc[k].([]any)
		list, toList := v.([]any)
		rec, isRecord := doc[k].(schema.Record)
		more, toRecord := v.(schema.Record)
		switch {
		case doc[k] == nil:
			doc[k] = v
		case isList && toList:
			doc[k] = append(have, list...)
		case isRecord && toRecord:
			if _, err := join(rec, more); err != nil {
				return nil, fmt.Errorf("%s.%w", k, err)
			}
		case fmt.Sprint(doc[k]) != fmt.Sprint(v):
			return nil, fmt.Errorf("%s is %v here and %v in a file before", k, v, doc[k])
		}
	}
	return doc, nil
}

// expand puts in the values of ${{ env "DECK_NAME" }}, by decK's rules: the text is a template, with the functions toInt, toFloat, toBool and indent,
// and lines that are comments stay as they are.
func (f *configFlags) expand(text []byte) ([]byte, error) {
	const open = "${{"
	if !strings.Contains(string(text), open) {
		return text, nil
	}
	lines := strings.SplitAfter(string(text), "\n")
	for i, line := range lines {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			lines[i] = strings.ReplaceAll(line, open, `${{"${{"}}`)
		}
	}
	t, err := template.New("line").Delims(open, "}}").Funcs(template.FuncMap{
		"env":     f.variable,
		"toBool":  func(s string) (bool, error) { return converted(strconv.ParseBool(s)) },
		"toInt":   func(s string) (int, error) { return converted(strconv.Atoi(s)) },
		"toFloat": func(s string) (float64, error) { return converted(strconv.ParseFloat(s, 64)) },
		"indent": func(by int, s string) string {
			return strings.ReplaceAll(s, "\n", "\n"+strings.Repeat(" ", max(by, 0)))
		},
	}).Parse(strings.Join(lines, ""))
	if err != nil {
		return nil, errors.New(strings.Replace(err.Error(), "template: line:", "line ", 1))
	}
	var out strings.Builder
	if err := t.Execute(&out, nil); err != nil {
		for cause := errors.Unwrap(err); cause != nil; cause = errors.Unwrap(cause) { // the template's own words say where, and repeat the text
			err = cause
		}
		return nil, err
	}
	return []byte(out.String()), nil
}

// converted words the error of a conversion without the value, which may be a secret.
func converted[T any](v T, err error) (T, error) {
	if err != nil {
		err = fmt.Errorf("the value of a variable is no %T", v)
	}
	return v, err
}

func (f *configFlags) variable(name string) (string, error) {
	if !strings.HasPrefix(name, "DECK_") {
		return "", fmt.Errorf("variable %q: only those that begin with DECK_ are put in", name)
	}
	value, ok := os.LookupEnv(name)
	if !ok {
		return "", fmt.Errorf("variable %s is not set", name)
	}
	if value != "" && !slices.Contains(f.masked, value) {
		f.masked = append(f.masked, value)
		slices.SortStableFunc(f.masked, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	}
	return value, nil
}

// mask hides what came from variables: it is kept out of the files because it is nobody's business, and diffs are shown in CI logs.
func (f *configFlags) mask(v any) any {
	switch v := v.(type) {
	case string:
		for _, value := range f.masked {
			v = strings.ReplaceAll(v, value, "[masked]")
		}
		return v
	case []any:
		for i := range v {
			v[i] = f.mask(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = f.mask(v[k])
		}
	}
	return v
}
