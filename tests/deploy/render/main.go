// Renders a chart as `helm template` does, for machines on which helm cannot be had: with Go's own
// templates, sprig (both are what helm uses), and helm's few functions beside them.
//
//	render CHART VALUES.json RELEASE NAMESPACE
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"gopkg.in/yaml.v3"
)

type values = map[string]interface{}

func main() {
	chart, release, namespace := os.Args[1], os.Args[3], os.Args[4]
	given := values{}
	check(json.Unmarshal(read(os.Args[2]), &given))
	about := readYaml(filepath.Join(chart, "Chart.yaml"))
	data := values{
		"Values":  merged(readYaml(filepath.Join(chart, "values.yaml")), given),
		"Release": values{"Name": release, "Namespace": namespace, "Service": "Helm", "IsInstall": true},
		"Chart":   capitalised(about),
	}
	all := template.New("chart").Option("missingkey=zero")
	all.Funcs(functions(all))
	paths, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	check(err)
	for _, path := range paths {
		_, err := all.New(filepath.Base(path)).Parse(string(read(path)))
		check(err)
	}
	for _, path := range paths {
		if strings.HasPrefix(filepath.Base(path), "_") {
			continue
		}
		var out bytes.Buffer
		check(all.ExecuteTemplate(&out, filepath.Base(path), data))
		text := strings.ReplaceAll(out.String(), "<no value>", "")
		fmt.Printf("---\n# Source: %s\n%s\n", filepath.Base(path), text)
	}
}

func functions(all *template.Template) template.FuncMap {
	known := sprig.TxtFuncMap()
	known["toYaml"] = func(value interface{}) (string, error) {
		text, err := yaml.Marshal(value)
		return strings.TrimSuffix(string(text), "\n"), err
	}
	known["include"] = func(name string, data interface{}) (string, error) {
		var out bytes.Buffer
		err := all.ExecuteTemplate(&out, name, data)
		return out.String(), err
	}
	known["required"] = func(fault string, value interface{}) (interface{}, error) {
		if value == nil || value == "" {
			return value, fmt.Errorf("%s", fault)
		}
		return value, nil
	}
	return known
}

func merged(below, above values) values {
	result := values{}
	for name, value := range below {
		result[name] = value
	}
	for name, value := range above {
		under, isMap := result[name].(values)
		over, areMaps := value.(values)
		if isMap && areMaps {
			value = merged(under, over)
		}
		result[name] = value
	}
	return result
}

func capitalised(about values) values {
	result := values{}
	for name, value := range about {
		result[strings.ToUpper(name[:1])+name[1:]] = value
	}
	return result
}

func readYaml(path string) values {
	result := values{}
	check(yaml.Unmarshal(read(path), &result))
	return result
}

func read(path string) []byte {
	text, err := os.ReadFile(path)
	check(err)
	return text
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
